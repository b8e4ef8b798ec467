"""Hostile inputs of six kinds, each made from one number, and the promise that is held to them.

    python tests/fuzz/run.py --count 10000 --seed 7
    python tests/fuzz/run.py --only pictures:7000123

An input is answered, or refused with a `FlashVLError` of one short line; a command ends with the
code 0, 1, 2 or 130. Nothing of an input is executed, no process is started for it, none of its
files is changed, and no text gives a control token's id. `promise.py` holds that, `worker.py` does
it in a child process under limits, `run.py` drives the children. Each kind is a module with a
function `case(random, place)`.
"""
