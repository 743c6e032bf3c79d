"""`python -m spkd_keras` is `spkd`."""

from spkd_keras.cli import main

main()
