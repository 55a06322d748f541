"""A warning when the masks do not become better, as they do not where the learning rate is far too small."""

WINDOW = 100  # steps whose mean losses are compared
SMALLEST_GAIN = 0.02  # relative fall of the last layer's dice loss from one window to the next
SMALLEST_DIFFERENCE = 0.03  # relative difference of first and last layer: less means that the layers do nothing
MESSAGE = (
    "The dice loss has not fallen for {window} steps ({before:.2f}, {now:.2f}), and the last layer's masks are no "
    "better than the first layer's. The learning rate is probably too small, or gradients are clipped too much: try "
    "--learning_rate 5e-4 --max_grad_norm 1 --warmup_steps 20."
)


class PlateauCheck:
    """Compares the mean losses of windows of steps; warns once."""

    def __init__(self):
        self.first: list[float] = []
        self.last: list[float] = []
        self.before: float | None = None
        self.warned = False

    def update(self, losses: dict[str, float]) -> str | None:
        """Add the losses of a step.

        Args:
            losses: by name, as in the log; of the pilot if there is one, else of the matching queries.

        Returns:
            the warning, or None.
        """
        kind = "loss_dice_pilot" if "loss_dice_pilot" in losses else "loss_dice"
        self.first.append(losses.get(f"{kind}_0", losses[kind]))
        self.last.append(losses[kind])
        if len(self.last) < WINDOW:
            return None
        first, now = (sum(values) / WINDOW for values in (self.first, self.last))
        before, self.before = self.before, now
        self.first.clear()
        self.last.clear()
        flat = before is not None and now > (1 - SMALLEST_GAIN) * before
        if self.warned or not flat or now < (1 - SMALLEST_DIFFERENCE) * first:
            return None
        self.warned = True
        return MESSAGE.format(window=WINDOW, before=before, now=now)
