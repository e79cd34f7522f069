"""Where a training publishes its model, as the training sees it."""

from pathlib import Path


class Publisher:
    """Publishes nothing. `hfgen.publishing.hub.HubPublisher` publishes on the Hub."""

    def check(self, index_file: str) -> None:
        """Find out, before training, whether a model can be published after it.

        Args:
            index_file: The file by which a reader finds the rest of the model.

        Raises:
            UserError: if it cannot.
            PublishingError: if that cannot be found out.
        """

    def start(self, checkpoint: Path) -> None:
        """Begin to publish a checkpoint, in the background."""

    def wait(self) -> None:
        """Wait until nothing is published in the background any more."""

    def publish(self, run: Path) -> None:
        """Publish a finished run.

        Raises:
            PublishingError: if it could not be published, with the command that tries again.
        """
