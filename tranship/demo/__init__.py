"""The demo: a real FSDP2 trainer updates an FP8 engine through a compiled, verified plan."""

from tranship.demo.run import main as main
