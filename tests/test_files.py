"""Atomic writes, and text files in the encodings that users' editors write."""

import pytest

from nfnets.errors import UserError
from nfnets.files import read_user_text, write_atomically, write_text_atomically


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text_atomically(path, "old é\n")
    assert path.read_bytes() == "old é\n".encode()

    def write(temporary):
        assert (
            temporary.parent == tmp_path and path.read_text(encoding="utf-8") == "old é\n"
        )
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == "old é\n".encode()
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_user_text_has_unix_line_ends_and_no_byte_order_mark(tmp_path, encoding, newline):
    path = tmp_path / "names.txt"
    path.write_bytes(newline.join(["Bär", "", "chat\x85 noir"]).encode(encoding))
    assert read_user_text(path) == "Bär\n\nchat\x85 noir"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("eins\nzwei\nBär\n".encode("latin-1"), 3),
        (b"\xef\xbb\xbfa\r\n\xe4", 2),
        ("eins".encode("utf-16"), 1),
    ],
)
def test_other_encodings_are_errors(tmp_path, content, line):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_user_text(path)
    assert str(caught.value) == (
        f"{path}, line {line}: not UTF-8 text; save the file with UTF-8 encoding"
    )


def test_missing_text_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*names\.txt: No such file"):
        read_user_text(tmp_path / "names.txt")
