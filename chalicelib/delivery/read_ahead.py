"""Read the next page of recipients while the current one is being sent."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, wait

from chalicelib.delivery.parcel import Parcel
from chalicelib.errors import HeraldError, Unavailable
from chalicelib.runtime.deadlines import Deadline


class ReadAhead:
    """Reads one page ahead, in another thread.

    `ended` is set after the last page. `error` is the error that ended the pages early, if any.
    """

    def __init__(
        self,
        pages: Iterable[Sequence[Parcel]],
        readers: Executor,
        on_page: Callable[[], None],
    ) -> None:
        """Start to read. The reader's thread calls `on_page` when a page has been read."""
        self._pages = iter(pages)
        self._readers = readers
        self._on_page = on_page
        self.ended = False
        self.error: HeraldError | None = None
        self._next = self._read()

    def take(self) -> Sequence[Parcel] | None:
        """Return the next page; None when it has not been read yet, and at the end."""
        if self.ended or not self._next.done():
            return None
        try:
            page = self._next.result()
        except HeraldError as error:
            page, self.error = None, error
        if page is None:
            self.ended = True
        else:
            self._next = self._read()
        return page

    def wait(self, deadline: Deadline) -> Sequence[Parcel] | None:
        """Wait for the next page until the deadline.

        Returns None at the end. When the page does not come in time it returns None, too, and sets
        `error`.
        """
        wait([self._next], timeout=deadline.left())
        page = self.take()
        if page is None and not self.ended:
            self.error = Unavailable("the audience could not be read to its end in time")
        return page

    def _read(self) -> "Future[Sequence[Parcel] | None]":
        future = self._readers.submit(next, self._pages, None)
        future.add_done_callback(lambda _: self._on_page())
        return future
