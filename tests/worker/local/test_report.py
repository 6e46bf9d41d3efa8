from __future__ import annotations

import io
import os
import re

from rpcgroup.local.report import LineReporter


def test_events_have_a_time_and_lines_their_worker() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream)
    reporter.event("digits", "Complete")
    reporter.line("digits-worker-0", "step 1")
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d digits: Complete", first)
    assert second == "[digits-worker-0] step 1"


def test_a_reader_that_went_away_does_not_stop_the_group() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        LineReporter(stream).line("w", "x")
        try:
            stream.close()
        except BrokenPipeError:
            pass
