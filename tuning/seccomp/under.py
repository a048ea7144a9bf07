#!/usr/bin/env python3
"""Runs a command under a seccomp profile in the form docker and Kubernetes take, without a container.

usage: under.py PROFILE.json COMMAND [ARGUMENT...]

For trying tuning/seccomp/trunkline.json on a machine without a container runtime. Needs libseccomp.so.2, which systemd brings along.
Only what that profile uses is understood; anything else in one is an error. Exit code 2: the filter was not loaded.
"""

import ctypes
import json
import os
import sys

ACT_ALLOW = 0x7FFF0000
OPERATORS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
RESOLVE_ERROR = -1


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp of seccomp.h"""

    _fields_ = [("index", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def stop(text):
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def load(profile, library):
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Comparison)]
    if profile["defaultAction"] != "SCMP_ACT_ERRNO":
        stop(f"default action {profile['defaultAction']} is not understood")
    context = library.seccomp_init(0x00050000 | profile["defaultErrnoRet"])
    for rule in profile["syscalls"]:
        if rule["action"] != "SCMP_ACT_ALLOW":
            stop(f"action {rule['action']} is not understood")
        # In OCI, the value of a masked comparison is the mask.
        wanted = [
            Comparison(arg["index"], OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0))
            for arg in rule.get("args", [])]
        array = (Comparison * len(wanted))(*wanted)
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == RESOLVE_ERROR:
                print(f"note: this libseccomp does not know {name}", file=sys.stderr)
                continue
            # Negative numbers other than that: not a call of this architecture.
            if number >= 0:
                error = library.seccomp_rule_add_array(context, ACT_ALLOW, number, len(wanted), array)
                if error:
                    stop(f"{name}: {os.strerror(-error)}")
    error = library.seccomp_load(context)
    if error:
        stop(f"the kernel does not take the filter: {os.strerror(-error)}")


def main():
    if len(sys.argv) < 3:
        stop("usage: under.py PROFILE.json COMMAND [ARGUMENT...]")
    with open(sys.argv[1], encoding="utf-8") as file:
        profile = json.load(file)
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        stop(f"libseccomp is not installed: {error}")
    load(profile, library)
    os.execvp(sys.argv[2], sys.argv[2:])


main()
