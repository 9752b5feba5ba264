"""`python -m pipeline_lib`."""

from pipeline_lib.interrupts import end_at_once

end_at_once()  # before the imports, which take a while

from pipeline_lib.cli import main  # noqa: E402

main()
