"""``elpv``: the solar cells of the demo, with the partition that its model card publishes."""

from __future__ import annotations

from splitboard.contract.errors import UserError
from splitboard.zoo import elpv
from splitboard.zoo.data.dataset import DataSet, Part, StoredImages


def load() -> DataSet:
    """The images of the package ``elpv-dataset``; the partition's calibration part is the validation part here.

    Raises:
        UserError: the package is not installed.
    """
    try:
        cells = elpv.load()
    except ModuleNotFoundError as error:
        raise UserError(
            f'the data set "elpv" needs the package "{error.name}"', ['pip install "splitboard[train]"']
        ) from error

    def part(found: elpv.Part) -> Part:
        return Part(StoredImages(found.images), found.labels, elpv.soft_targets(found), found.sha256)

    return DataSet(
        name="elpv",
        classes=elpv.TASKS,
        source_channels=1,
        train=part(cells.train),
        validation=part(cells.calibration),
        test=part(cells.test),
    )
