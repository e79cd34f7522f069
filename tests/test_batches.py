"""Batches follow from (seed, step, process) and show every image in each epoch."""

import torch

from hfgen.data.images import ImageData
from hfgen.data.loader import ImageBatches


def numbered(count: int) -> ImageData:
    return ImageData(
        torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(count), None, "test", "fingerprint"
    )


def test_an_epoch_shows_every_image_and_the_next_another_order():
    batches = ImageBatches(numbered(10), train_batch_size=4, seed=1)
    epochs = [torch.cat([batches.indices(step) for step in range(e * 3, e * 3 + 3)]).tolist() for e in range(2)]
    assert batches.steps_per_epoch == 3
    assert [sorted(epoch[:10]) for epoch in epochs] == [list(range(10))] * 2
    assert [epoch[10:] for epoch in epochs] == [epoch[:2] for epoch in epochs], "filled up from the beginning"
    assert epochs[0] != epochs[1]


def test_processes_and_accumulation_share_one_order():
    whole = ImageBatches(numbered(16), train_batch_size=16, seed=3).indices(5)
    halves = [ImageBatches(numbered(16), train_batch_size=8, seed=3, num_processes=2, process_index=p) for p in (0, 1)]
    assert torch.cat([half.indices(5) for half in halves]).equal(whole)
    micro = ImageBatches(numbered(16), train_batch_size=4, seed=3, gradient_accumulation_steps=4)
    assert torch.cat([micro.indices(5, m) for m in range(4)]).equal(whole)


def test_batches_are_floats_with_their_labels():
    source = numbered(256)
    batch = ImageBatches(source, train_batch_size=256)(0)
    assert batch.images.dtype == torch.float32
    assert (batch.images.min(), batch.images.max()) == (-1, 1)
    assert ((batch.images.flatten() + 1) * 127.5).round().long().equal(batch.labels)
    assert source.images.flatten().tolist() == list(range(256)), "the data set is not changed in place"


def test_random_flip_mirrors_half_of_the_images():
    images = torch.tensor([[0, 255]], dtype=torch.uint8).repeat(1000, 1).view(1000, 1, 1, 2)
    source = ImageData(images, None, None, "test", "fingerprint")
    torch.manual_seed(0)
    flipped = ImageBatches(source, train_batch_size=1000, random_flip=True)(0).images[:, 0, 0, 0]
    assert 400 < (flipped == 1).sum() < 600
    assert (ImageBatches(source, train_batch_size=1000)(0).images[:, 0, 0, 0] == -1).all()
