"""Prints the expected record in trainer/src/events.rs. Run with TensorBoard 2.21.0: python tests/golden/events.py"""
import io

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

event = Event(wall_time=1.5, step=3)
event.summary.value.add(tag="a/b", simple_value=0.5)
written = io.BytesIO()
RecordWriter(written).write(event.SerializeToString())
print(written.getvalue().hex())
