"""Rejection of one row, image or file, while the job continues with the others."""

from multas_ray.errors import one_line


class Reject(Exception):
    """Row that cannot be used: raised where that is discovered, passed on in the row's place."""

    def __init__(self, reason: str, detail: str = "", image_id: str = "") -> None:
        """Reject a row.

        Args:
            reason: one of few short phrases, by which rejected rows are counted.
            detail: the cause in one line.
            image_id: image of the row, once it is known.
        """
        self.reason, self.detail, self.image_id = reason, one_line(detail), image_id
        super().__init__(self.reason, self.detail, image_id)
