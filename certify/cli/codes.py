"""Exit codes that no exception carries (certify.errors has the others)."""

ALARM = 3  # a soundness alarm, or a crash of our own
NOT_MET = 1
UNDECIDED = 4
INTERRUPTED = 130  # 128 + SIGINT, as shells count
READER_LEFT = 141  # 128 + SIGPIPE: `certify ... | head -1`
GATES = {"met": 0, "not met": NOT_MET, "undecided": UNDECIDED}  # by certify.gate.Ruling
