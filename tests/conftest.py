"""What every test may rely on, however the suite was started."""

from __future__ import annotations

import signal

# A shell's background job, or nohup, has these ignored, and every process started here would inherit that: the tests
# that interrupt one, or close its terminal, would wait for nothing. A handler does not outlive an exec, SIG_IGN does.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
