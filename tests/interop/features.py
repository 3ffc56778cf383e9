# Every flag and every command of libnbd against an export; argv: URI, structured replies or not, size.
# Prints "held" at the end. Run with the system's python3, which has the bindings.
import errno
import sys

import nbd

uri, structured = sys.argv[1], sys.argv[2] == "structured"


def connect(**options):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    if structured:
        h.add_meta_context("base:allocation")
    for name, value in options.items():
        getattr(h, name)(value)
    h.connect_uri(uri)
    return h


def refused(number, call, *args, **named):
    try:
        call(*args, **named)
    except nbd.Error as error:
        assert error.errnum == number, (call, args, error)
    else:
        raise AssertionError((call, args, "was not refused"))


def stretches(h, length, offset, flags=0):
    found = []

    def add(context, at, entries, error):
        assert context == "base:allocation" and at == offset
        found.extend(zip(entries[::2], entries[1::2]))

    h.block_status(length, offset, add, flags)
    return found


h = connect()
size = h.get_size()
assert size == int(sys.argv[3])
assert h.get_structured_replies_negotiated() == structured
assert h.can_df() == structured and h.can_meta_context("base:allocation") == structured
for name in ["can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_cache", "can_multi_conn"]:
    assert getattr(h, name)(), name
assert not h.is_read_only() and not h.is_rotational()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20

# Every command that changes something, with and without FUA, and what is read afterwards.
block = bytes(range(256)) * 16
for at, flags in [(0, 0), (8192, nbd.CMD_FLAG_FUA), (size - 4096, 0), (20001, nbd.CMD_FLAG_FUA)]:
    h.pwrite(block, at, flags)
    assert h.pread(4096, at) == block
h.flush()
h.cache(1 << 20, 0)
for flags in [0, nbd.CMD_FLAG_FUA]:
    h.pwrite(block * 32, 65536)
    h.trim(131072, 65536, flags)
    assert h.pread(131072, 65536) == bytes(131072)
    for more in [0, nbd.CMD_FLAG_NO_HOLE]:
        h.pwrite(block * 32, 65536)
        h.zero(131072, 65536, flags | more)
        assert h.pread(131072, 65536) == bytes(131072)
    h.pwrite(block * 32, 65536)
    try:
        h.zero(131072, 65536, flags | nbd.CMD_FLAG_FAST_ZERO)
        assert h.pread(131072, 65536) == bytes(131072)
    except nbd.Error as error:
        assert error.errnum == errno.ENOTSUP, error
        assert h.pread(131072, 65536) == block * 32, "a refusal changes nothing"

# The longest payloads, which are written and read in pieces, at any offset; and many of them at a time, among others.
long = 32 << 20
noise = [bytes([number]) * 4093 for number in range(1, 9)]
noise = (b"".join(noise) * (long // len(b"".join(noise)) + 1))[:long]
for at, flags in [(8192, 0), (size - long, nbd.CMD_FLAG_FUA), (20001, nbd.CMD_FLAG_FUA)]:
    h.pwrite(noise, at, flags)
    assert h.pread(long, at) == noise, at
h.flush()
if structured:
    assert h.pread_structured(long, 20001, lambda *chunk: 0, nbd.CMD_FLAG_DF) == noise
buffers, cookies = [], []
for number in range(6):
    for length, at in [(long, 20001), (4096, 20001 + 4096 * number), (9 << 20, 20001), (2 << 20, 20001)]:
        buffers.append((nbd.Buffer(length), at - 20001))
        if structured and number % 2:
            asked = h.aio_pread_structured(buffers[-1][0], at, lambda *chunk: 0, flags=nbd.CMD_FLAG_DF)
        else:
            asked = h.aio_pread(buffers[-1][0], at)
        cookies.append(asked)
    cookies.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(noise[:9 << 20])), 20001))
while cookies:
    h.poll(-1)
    cookies = [cookie for cookie in cookies if not h.aio_command_completed(cookie)]
for buffer, at in buffers:
    data = bytes(buffer.to_bytearray())
    assert data == noise[at:at + len(data)], (len(data), at)
h.pwrite(block, 0)

if structured:
    for length, flags in [(4096, 0), (4096, nbd.CMD_FLAG_DF), (32 << 20, nbd.CMD_FLAG_DF)]:
        chunks = []
        data = h.pread_structured(length, 0, lambda part, at, kind, error: chunks.append((len(part), at, kind)), flags)
        assert data[:4096] == block and chunks == [(length, 0, nbd.READ_DATA)], chunks
    chunks = []
    h.pread_structured(32 << 20, 0, lambda part, at, kind, error: chunks.append((len(part), at, kind)))
    assert chunks == [(2 << 20, at << 20, nbd.READ_DATA) for at in range(0, 32, 2)], chunks
    h.trim(1 << 20, 4 << 20)
    for length, flags in [(65536, 0), (1 << 20, nbd.CMD_FLAG_DF)]:
        chunks = []
        h.pread_structured(length, 4 << 20, lambda part, at, kind, error: chunks.append((len(part), at, kind)), flags)
        assert [chunk[1:] for chunk in chunks] == [(4 << 20, nbd.READ_HOLE)], chunks
    h.pwrite(block, (4 << 20) + 65536)
    assert h.pread(1 << 20, 4 << 20) == bytes(65536) + block + bytes((1 << 20) - 65536 - 4096)
    found = stretches(h, 1 << 20, 4 << 20)
    hole, data = nbd.STATE_HOLE | nbd.STATE_ZERO, 0
    assert sum(length for length, _ in found) == 1 << 20, found
    assert found[0] == (65536, hole) and found[1][1] == data and found[-1][1] == hole, found
    assert stretches(h, 1 << 20, 4 << 20, nbd.CMD_FLAG_REQ_ONE) == [(65536, hole)]
    assert stretches(h, 100, (4 << 20) + 65536) == [(100, data)]
else:
    refused(errno.ENOTSUP, h.block_status, 4096, 0, lambda *args: None)
h.shutdown()

# What no honest client would send.
h = connect(set_strict_mode=0)
refused(errno.ENOSPC, h.pwrite, block, size - 1)
refused(errno.ENOSPC, h.zero, 4096, size)
refused(errno.EINVAL, h.pread, 4096, size - 4095)
refused(errno.EINVAL, h.pread, 512, 1 << 62)
refused(errno.EINVAL, h.trim, 4096, size)
refused(errno.EINVAL, h.cache, 4096, size)
refused(errno.EINVAL, h.pread, 4096, 0, 1 << 14)
refused(errno.EINVAL, h.pwrite, block, 0, 1 << 14)
refused(errno.EINVAL, h.trim, 4096, 0, nbd.CMD_FLAG_FAST_ZERO)
refused(errno.EINVAL, h.flush, nbd.CMD_FLAG_DF)
refused(errno.EINVAL, h.cache, 4096, 0, nbd.CMD_FLAG_REQ_ONE)
if structured:
    refused(errno.EINVAL, h.block_status, 4096, size, lambda *args: None)
    refused(errno.EINVAL, h.block_status, 4096, 0, lambda *args: None, nbd.CMD_FLAG_DF)
else:
    refused(errno.EINVAL, h.pread, 4096, 0, nbd.CMD_FLAG_DF)
assert h.pread(4096, 0) == block, "still in step"
h.shutdown()

# Clients of before 2016, with and without the zeroes after the answer.
for flags in [0, nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE, nbd.HANDSHAKE_FLAG_NO_ZEROES, nbd.HANDSHAKE_FLAG_MASK]:
    h = nbd.NBD()
    h.set_handshake_flags(flags)
    h.set_request_structured_replies(structured)
    h.connect_uri(uri)
    assert h.pread(4096, 0) == block
    h.shutdown()

# The handshake, option by option.
h = connect(set_opt_mode=True, set_full_info=True)
names = []
h.opt_list(lambda name, description: names.append(name))
assert "db" in names, names
h.set_export_name("nothing")
refused(errno.ENOENT, h.opt_info)
h.set_export_name("db")
if structured:
    # Without a query, with a wildcard, and of a namespace that nobody knows.
    contexts = []
    for queries in [[], ["base:"], ["x-nothing:"]]:
        h.clear_meta_contexts()
        for query in queries:
            h.add_meta_context(query)
        h.opt_list_meta_context(contexts.append)
    assert contexts == ["base:allocation"] * 2, contexts
    h.clear_meta_contexts()
    h.add_meta_context("base:allocation")
    if hasattr(h, "opt_set_meta_context_queries"):
        h.opt_set_meta_context_queries(["base:"], contexts.append)
        assert len(contexts) == 2 and not h.can_meta_context("base:allocation")
        h.opt_set_meta_context_queries(["base:allocation"], contexts.append)
        assert len(contexts) == 3 and h.can_meta_context("base:allocation")
    # Asked twice, by who can.
    if hasattr(h, "opt_structured_reply"):
        assert not h.opt_structured_reply()
h.opt_info()
assert h.get_canonical_export_name() == "db" and "farshore" in h.get_export_description()
h.opt_go()
assert h.pread(4096, 0) == block
if structured:
    assert stretches(h, 4096, 0) == [(4096, 0)]
h.shutdown()
print("held")
