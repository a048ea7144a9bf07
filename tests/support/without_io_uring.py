import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
setup = 425
load, equal, give = 0x20, 0x15, 0x06
filters = b"".join(struct.pack("HBBI", *each) for each in [
    (load, 0, 0, 0), (equal, 0, 1, setup), (give, 0, 0, 0x00050001), (give, 0, 0, 0x7fff0000)])
code = ctypes.create_string_buffer(filters)
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(code))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    sys.exit(77)
os.execv(sys.argv[1], sys.argv[1:])
