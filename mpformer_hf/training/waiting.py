"""A sentence when training waits for images."""

WINDOW = 50  # steps
LARGEST_SHARE = 0.2  # of the time of the window
MESSAGE = (
    "{share:.0%} of the time of the last {window} steps was spent waiting for images (--dataloader_num_workers "
    "{workers}). More workers help if there are free cores and the dataset is not streamed. "
    "data_seconds in log.jsonl is the time that each step waited."
)


class WaitingCheck:
    """Adds up the time that steps wait for images; warns once.

    Args:
        workers: number of loader workers, for the message.
    """

    def __init__(self, workers: int):
        self.workers, self.warned = workers, False
        self.steps, self.waited, self.total = -1, 0.0, 0.0  # the first step waits for the start of the workers

    def update(self, waited: float, total: float) -> str | None:
        """Add a step.

        Args:
            waited, total: seconds that it waited for images, and seconds that it took.

        Returns:
            the warning, or None.
        """
        self.steps += 1
        if self.steps:
            self.waited, self.total = self.waited + waited, self.total + total
        if self.steps < WINDOW:
            return None
        share = self.waited / self.total
        self.steps, self.waited, self.total = 0, 0.0, 0.0
        if self.warned or share <= LARGEST_SHARE:
            return None
        self.warned = True
        return MESSAGE.format(share=share, window=WINDOW, workers=self.workers)
