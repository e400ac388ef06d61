"""What guests run that do not behave: Python for a domU, with its domid and `patient` or `once` as arguments.

A patient one waits until the broker has made the channel anew. Each writes `open` when it has it.
"""

OPEN = """
import ctypes, sys, time
from vmtoken.transport import libxenvchan
domid, what = sys.argv[1:3]
for attempt in range(600):
    try:
        vchan = libxenvchan.open_client(0, f"/local/domain/0/data/vmtoken/{domid}")
        break
    except OSError as error:
        print(f"refused {error.errno}", flush=True)
        if what == "once":
            sys.exit()
        time.sleep(0.1)
control = vchan._control.contents
events = ctypes.CDLL("libxenevtchn.so.1")
events.xenevtchn_notify.argtypes = (ctypes.c_void_p, ctypes.c_uint32)

def notify():
    events.xenevtchn_notify(control.event, control.event_port)

print("open", flush=True)
"""

FLOODS = f"""{OPEN}
while True:
    notify()
"""
"""Notifications without end, and nothing in the rings."""

NEVER_READS = f"""{OPEN}
while True:
    vchan.write(bytes(65536)) or time.sleep(0.001)
"""
"""Fills one ring, and leaves in the other what comes."""

SENDS_ON = f"""{OPEN}
waiting = b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
frame = (16000).to_bytes(3, "big") + bytes([0xBB, 0, 0, 0, 0, 0]) + bytes(16000)
while True:
    count = vchan.write(waiting)
    waiting = waiting[count:] or frame
    vchan.read(65536)
    count or time.sleep(0.001)
"""
"""Frames of HTTP/2 without end, of a type that means nothing and is passed over (RFC 9113 section 4.1)."""

STOPS_READING = f"""{OPEN}
settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
waiting = b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + 4000 * settings
while waiting:
    count = vchan.write(waiting)
    waiting = waiting[count:]
    count or time.sleep(0.001)
time.sleep(600)
"""
"""Has more to be acknowledged than its ring takes, and reads none of it."""

COMES_AND_GOES = f"""{OPEN}
vchan.close()
count, end = 0, time.monotonic() + 5
while True:
    try:
        libxenvchan.open_client(0, f"/local/domain/0/data/vmtoken/{{domid}}").close()
        count += 1
    except OSError:
        time.sleep(0.01)
    if time.monotonic() > end:
        print("came", count, flush=True)
        end += 3600
"""
"""As often as it can; says how often that was in five seconds."""

COMPUTES = """
print("open", flush=True)
while True:
    pass
"""
"""Does no wrong: what a domain costs others that is only busy."""
