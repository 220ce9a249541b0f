"""Why one row, image or file is left out, while the job goes on with the others."""

from multas_ray.errors import one_line


class Reject(Exception):
    """A row that cannot be used: raised where that is found out, handed on in the row's place.

    `reason` is one of few short phrases, to be counted; `detail` says in one line what was found.
    """

    def __init__(self, reason: str, detail: str = "", image_id: str = "") -> None:
        self.reason, self.detail, self.image_id = reason, one_line(detail), image_id
        super().__init__(self.reason, self.detail, image_id)
