"""An agent in Python that needs nothing but grpcio-tools: facts, a tool call, recall; each turn says what it computed.

    pip install grpcio-tools
    cargo run --release -- serve &
    python3 examples/python/agent.py 127.0.0.1:50051
"""

import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).parents[2] / "proto"
generated = tempfile.mkdtemp()
files = [str(path) for path in sorted((PROTO / "holdfast" / "v1").glob("*.proto"))]
well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
if protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={generated}", f"--grpc_python_out={generated}", *files]) != 0:
    sys.exit("the protos could not be compiled")
sys.path.insert(0, generated)
from holdfast.v1 import item_pb2, session_pb2, session_service_pb2 as api, session_service_pb2_grpc as rpc  # noqa: E402

SCHEMA = '{"type":"object","properties":{"order_id":{"type":"string"}},"required":["order_id"]}'
TOOLS = {"order_status": lambda arguments: '{"status":"delayed","eta":"Tuesday"}'}


def user(text):
    content = [item_pb2.ContentPart(text=text)]
    return item_pb2.Item(message=item_pb2.Message(role=item_pb2.ROLE_USER, content=content))


def answer(call):
    """Runs the tool that the model asked for."""
    tool = TOOLS.get(call.name)
    text = tool(call.arguments) if tool else '{"error":"no such tool"}'
    content = [item_pb2.ContentPart(text=text)]
    result = item_pb2.ToolResult(call_id=call.call_id, content=content, is_error=tool is None)
    return item_pb2.Item(tool_result=result)


def turn(sessions, session, text):
    """One turn: streams the answer, runs tools as long as the model asks for them, returns the turn as it ended."""
    print(f"user: {text}\nassistant: ", end="")
    request = api.RunTurnRequest(session=session, input=[user(text)])
    while True:
        calls = []
        for event in sessions.RunTurn(request):
            kind = event.WhichOneof("kind")
            if kind == "text_delta":
                print(event.text_delta.text, end="", flush=True)
            elif kind == "requires_action":
                calls = event.requires_action.calls
            elif kind == "turn_ended":
                used = event.turn_ended.turn.usage
                print(f"\n  [{used.cached_tokens} tokens reused, {used.computed_tokens} computed]")
                return event.turn_ended.turn
        for call in calls:
            print(f"[calls {call.name}({call.arguments})] ", end="")
        request = api.RunTurnRequest(session=session, turn=event.turn, input=[answer(call) for call in calls])


def main(address):
    function = item_pb2.FunctionTool(name="order_status", parameters_json_schema=SCHEMA)
    config = session_pb2.SessionConfig(
        instructions="You are Pebble, the assistant of Stone Cafe.", tools=[item_pb2.Tool(function=function)]
    )
    with grpc.insecure_channel(address) as channel:
        sessions = rpc.SessionServiceStub(channel)
        session = sessions.CreateSession(api.CreateSessionRequest(session=session_pb2.Session(config=config)))
        for text in ["My locker code is 4471.", "Where is order 7731?", "What is my locker code?"]:
            turn(sessions, session.name, text)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
