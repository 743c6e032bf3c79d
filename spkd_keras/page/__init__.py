"""All results on one self-contained HTML page. Reads files only, and no TensorFlow."""

from spkd_keras.page.write import LARGEST_PAGE, write_page

__all__ = ["LARGEST_PAGE", "write_page"]
