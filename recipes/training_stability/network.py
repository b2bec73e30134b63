"""A deep multi-layer perceptron, as it was written before 2010."""

from torch import Tensor, nn


class DeepMLP(nn.Module):
    """Hidden layers of equal width with a sigmoid behind each, and torch's default first weights.

    Args:
        hidden_layers: Number of hidden layers.
        width: Units of each.
        image_size: Height and width of the images ``[N, 1, H, W]`` in pixels.
        norm: Whether a batch norm stands in front of each activation.
        num_classes: Number of logits.
    """

    def __init__(
        self,
        hidden_layers: int = 8,
        width: int = 64,
        image_size: int = 8,
        norm: bool = False,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.hidden = nn.Sequential()
        inside = image_size**2
        for number in range(1, hidden_layers + 1):
            self.hidden.add_module(f"linear{number}", nn.Linear(inside, width))
            if norm:
                self.hidden.add_module(f"norm{number}", nn.BatchNorm1d(width))
            self.hidden.add_module(f"activation{number}", nn.Sigmoid())
            inside = width
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x.flatten(1)))
