"""Albumentations' ``Affine`` without the work that images and masks do not need."""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.geometric import functional as geometric

_MOST_CHANNELS = 4  # that OpenCV moves at once


class Affine(A.Affine):
    """The same images and masks as ``albumentations.Affine`` with the same arguments, to the last bit.

    For an image of 32 pixels, Albumentations spends a tenth of the time on moving it. A second matrix, for bounding
    boxes, and the question whether the first one moves anything take most of the rest; one that does not gives the same
    image here too. Boxes and key points are not moved.
    """

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the numbers and make the matrix."""
        if self.fit_output:
            return super().get_params_dependent_on_data(params, data)
        shape = params["shape"][:2]
        translate = self._get_translate_params(shape)
        shear = self._get_shear_params()
        scale = self._get_scale(self.scale, self.keep_ratio, self.balanced_scale, self.py_random)
        rotate = self.py_random.uniform(*self.rotate)
        centre = geometric.center(shape)
        matrix = geometric.create_affine_transformation_matrix(translate, shear, scale, rotate, centre)
        return {"matrix": matrix, "output_shape": shape}

    def apply(self, img: np.ndarray, matrix: np.ndarray, output_shape: tuple[int, int], **params: Any) -> np.ndarray:
        """Move the image."""
        if self.fit_output or img.ndim != 3 or img.shape[2] > _MOST_CHANNELS:
            return super().apply(img, matrix, output_shape, **params)
        height, width = output_shape
        fill = geometric.extend_value(self.fill, img.shape[2])
        moved = cv2.warpAffine(
            img, matrix[:2], (width, height), flags=self.interpolation, borderMode=self.border_mode, borderValue=fill
        )
        return moved.reshape(height, width, -1)
