"""Single requests to the S3 protocol; each is one attempt, to be wrapped in `faults.retry`."""

from __future__ import annotations

from typing import Any, NamedTuple

from open_lm.storage.faults import CutShortError, MismatchError, code_of
from open_lm.storage.remote import filesystem


class Part(NamedTuple):
    """Bytes of an object, the object's size, and its ETag."""

    data: bytes
    total: int
    stamp: str


class Bucket:
    """The object or prefix of a url."""

    def __init__(self, url: str):
        self._filesystem, path = filesystem(url)
        self.name, self.key, _ = self._filesystem.split_path(path)
        if not self.name or ":///" in url:
            raise ValueError(f"{url}: names no bucket; write s3://bucket/path")

    def call(self, method: str, **options: Any) -> dict[str, Any]:
        """A request about the bucket; the answer as botocore gives it."""
        return self._filesystem.call_s3(method, Bucket=self.name, **options)

    def head(self) -> dict[str, Any]:
        """Size (ContentLength), ETag and the like of the object."""
        return self.call("head_object", Key=self.key)

    def read(self, start: int, stop: int) -> Part:
        """Bytes `start <= i < stop` of the object, fewer at its end."""
        import fsspec.asyn

        return fsspec.asyn.sync(self._filesystem.loop, self._read, start, stop)

    async def _read(self, start: int, stop: int) -> Part:
        try:
            answer = await self._filesystem._call_s3("get_object", Bucket=self.name, Key=self.key, Range=f"bytes={start}-{stop - 1}")
        except OSError as error:
            if code_of(error) == "InvalidRange" and start == 0:  # what S3 says of an empty object
                return Part(b"", 0, "")
            raise
        try:
            data = await answer["Body"].read()
        except Exception as error:
            if type(error).__name__ == "FlexibleChecksumError":
                raise MismatchError(f"the checksum of what came is another one: {error}") from error
            raise
        finally:
            answer["Body"].close()
        total = int(answer["ContentRange"].rpartition("/")[2]) if "ContentRange" in answer else int(answer["ContentLength"])
        if "ContentRange" not in answer:  # the whole object, from a store that doesn't know ranges
            data = data[start:stop]
        if len(data) != min(stop, total) - start:
            raise CutShortError(f"{len(data)} of {min(stop, total) - start} bytes came")
        return Part(data, total, answer["ETag"].strip('"'))

    def page(self, prefix: str, token: str | None, delimiter: str = "") -> dict[str, Any]:
        """One page (1000 names) of the names that start with `prefix`."""
        more = {"ContinuationToken": token} if token else {}
        return self.call("list_objects_v2", Prefix=prefix, Delimiter=delimiter, **more)
