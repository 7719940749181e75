"""`python -m lmtp_replicate` is `lmtp-replicate`."""

import sys

from lmtp_replicate.cli import main

sys.exit(main())
