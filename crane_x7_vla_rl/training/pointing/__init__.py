"""A new small policy learns to look before it learns to act.

Pictures of random scenes with the arm anywhere, no physics: `views` draws them. `towers` teaches
vision towers with FiLM where the thing is that the instruction names; `moves` teaches the language
model the expert's way there (`paths`). Demonstrations then teach the rest (`sft`).
"""
