"""A small Singer tap that says what its config tells it to.

config: {"streams": {name: {"schema": …, "key": […], "bookmark": …}}, "lines": [message or text, …],
"rows": n, "bytes": hex, "exit": code, "signal": number, "stderr": text, "echo": path}
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
config = json.loads(Path(arguments["--config"]).read_text("utf-8"))
if config.get("echo"):
    seen = {
        name[2:]: json.loads(Path(path).read_text("utf-8"))
        for name, path in arguments.items()
        if path and path.endswith("json")
    }
    seen["mode"] = oct(Path(arguments["--config"]).stat().st_mode & 0o777)
    seen["pid"] = os.getpid()
    seen["config_path"] = arguments["--config"]
    Path(config["echo"]).write_text(json.dumps(seen), "utf-8")
sys.stderr.write(config.get("stderr", ""))
if "--discover" in sys.argv:
    if config.get("no_discover"):
        sys.exit("this tap knows no --discover")
    streams = []
    for name, stream in config["streams"].items():
        facts = {"table-key-properties": stream.get("key", [])}
        if stream.get("bookmark"):
            facts |= {"replication-key": stream["bookmark"], "replication-method": "INCREMENTAL"}
        streams.append(
            {
                "tap_stream_id": name,
                "stream": name,
                "schema": stream["schema"],
                "metadata": [{"breadcrumb": [], "metadata": facts}],
            }
        )
    print(json.dumps({"streams": streams}))
    sys.exit()

out = sys.stdout
for line in config.get("lines", ()):
    out.write(line if isinstance(line, str) else json.dumps(line))
    out.write("\n")
for number in range(config.get("rows", 0)):
    out.write(
        f'{{"type": "RECORD", "stream": "orders", "record": {{"id": {number}, "name": "customer {number}",'
        f' "total": {number}.25, "at": "2024-01-02T03:04:05.123456Z"}}}}\n'
    )
out.flush()
sys.stdout.buffer.write(bytes.fromhex(config.get("bytes", "")))
sys.stdout.buffer.flush()
if config.get("wait"):
    time.sleep(600)
if config.get("signal"):
    os.kill(os.getpid(), getattr(signal, config["signal"]))
sys.exit(config.get("exit", 0))
