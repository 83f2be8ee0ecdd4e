"""Exit codes that no exception carries (certify.errors has the others)."""

ALARM = 3  # a soundness alarm, or a crash of our own
UNDECIDED = 4
INTERRUPTED = 130  # 128 + SIGINT, as shells count
READER_LEFT = 141  # 128 + SIGPIPE: `certify ... | head -1`
