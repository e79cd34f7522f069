"""The interface for publishing the model of a training."""

from pathlib import Path


class Publisher:
    """Does not publish; `hfgen.publishing.hub.HubPublisher` publishes on the Hub."""

    def check(self, index_file: str) -> None:
        """Check, before training, that the model can be published.

        Args:
            index_file: The entry file of the model.

        Raises:
            UserError: if it cannot be published.
            PublishingError: if the check fails.
        """

    def start(self, checkpoint: Path) -> None:
        """Start publishing a checkpoint in the background."""

    def wait(self) -> None:
        """Wait for background publishing to finish."""

    def publish(self, run: Path) -> None:
        """Publish a finished run.

        Raises:
            PublishingError: if publishing failed, with the command to retry.
        """
