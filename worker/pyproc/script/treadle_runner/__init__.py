"""The Python side of a Treadle worker: one process that runs attempts, one at a time.

The agent (Go) starts this package with its own interpreter, speaks frames with it on
two inherited pipes (see ``wire``) and kills it when an attempt has to stop. Only the
standard library is used, so that any interpreter of 3.9 or newer can be a runner.

=============  ==================================================================
``main``       start-up and the loop: receive a call, run it, answer
``wire``       frames
``functions``  bytes or source text to a callable
``values``     arguments and results
``pickling``   writing pickles
``failures``   exceptions as text and as pickles that clients can load
``limits``     a memory limit without control groups
``state``      the process between two attempts: put back, or worth replacing?
=============  ==================================================================
"""
