"""What the teacher gives, computed once and kept in files, so that students are trained without the teacher."""

from spkd_keras.cache.computing import bytes_an_entry, compute
from spkd_keras.cache.manifest import Manifest, StoredTensor, data_digest
from spkd_keras.cache.sketch import SketchError, sketch_errors
from spkd_keras.cache.teacher_cache import TeacherCache

__all__ = [
    "Manifest",
    "SketchError",
    "StoredTensor",
    "TeacherCache",
    "bytes_an_entry",
    "compute",
    "data_digest",
    "sketch_errors",
]
