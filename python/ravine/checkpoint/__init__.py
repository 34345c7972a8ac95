r"""Checkpoints: what ``opt.save`` writes and ``opt.load`` reads, one file in the safetensors format.

Any reader of that format finds the arrays: ``<rule>/<state>/<parameter>``, such as ``adam/m/hidden.w``, and
``params/<parameter>``; where they are kept, ``master/<parameter>`` or ``remainder/<parameter>``,
``average/<parameter>``, ``average_rest/<parameter>`` (what float32 has lost of it; a file without it starts it at 0)
and Lookahead's ``slow/<parameter>``; ``extra/<name>`` and what is in it. The metadata have one entry, ``ravine``, in
JSON:

==============  =================================================================================================
``checksum``    CRC-32 of the length and the header, its own eight digits read as 0
``format``      1
``version``     of ravine, when it was written
``rule``        its name in the core
``optimizer``   the class's name
``step``        completed steps
``updates``     t of each parameter
``complex``     the names of complex parameters, if any: their arrays and states have a last axis of 2, the real and the
                imaginary part
``products``    of parameters where a β has changed: what it was in the first updates, how many, the product since
``options``     ``values`` of ``clip_value``, ``clip_norm``, ``nonfinite``, ``clip_eps``, and of ``lookahead``,
                ``average``, ``master``, ``states``, ``rounding`` and ``correction`` if they are on; ``exact``: its
                numbers, in hexadecimal
``groups``      ``names`` of the parameters, ``values``: numbers, and of schedules the expression; ``exact``
``extra``       what was passed as ``extra=``, as `ravine.checkpoint.extras` has it
``checksums``   CRC-32 of each tensor's bytes
==============  =================================================================================================

CRC-32 finds any one flipped bit and any damage within 32 bits for sure, other damage but for 1 in 4 billion. It is in
Python, and runs at several times a disk's speed. It guards against accidents, not against forgery. Each byte of a file
is under one of the checksums.
"""

from ravine.checkpoint.snapshot import Loaded, load, save

__all__ = ["Loaded", "load", "save"]
