"""Programs that tests of sessions run in processes of their own: each says on standard output how far it is, and waits for a line."""

HOLDER = """
import sys, callpool
client = callpool.connect(sys.argv[1])
session = client.sessions.create_session("kimi", "kimi-k3", "held", where="another process")
session.start()
print("held", flush=True)
sys.stdin.readline()
print(session.state, session.result, session.error, flush=True)
sys.stdin.readline()
"""

UNPICKLES = """
import pickle, sys
session = pickle.loads(bytes.fromhex(sys.stdin.readline()))
print(session.state, session.metadata, flush=True)
session.complete({"by": "another process"})
print(session.state, flush=True)
"""

INTERRUPTED = """
import signal, sys, time, callpool
signal.signal(signal.SIGINT, signal.default_int_handler)
def work():
    print("working", flush=True)
    time.sleep(60)
with callpool.connect(sys.argv[1]) as client:
    try:
        client.sessions.execute_with_session("kimi", "kimi-k3", work, request_id="interrupted", where=sys.argv[2])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    sys.stdin.readline()
"""
