"""What the benches share: a group of three processes on this machine, and fio against its export."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

# Bytes of every volume.
SIZE = 256 << 20
# Whether processes keep to the core of their host.
PINNED = True


def on(core, command):
    """The command on the first or the last core, where there are several."""
    last = os.cpu_count() - 1
    return ["taskset", "-c", str(0 if core == "first" else last), *command] if PINNED and last > 0 else command


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, check, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(0.05)
    sys.exit(f"{what} did not come about within {seconds} s")


class Farshore:
    """A group of three processes on this machine."""

    def __init__(self, binary, mode, disk, memory, line=None, filled=True, primary="", fifo='memory = "256MiB", disk = "1GiB"',
                 listen=(), tls=None, aux=""):
        """`line`: (one-way delay in ms, Mbit/s) of a relay between the primary and DR; `filled`: the volume has
        real blocks under all of it; `primary`: more lines of its part of the configuration; `listen`: more addresses for
        clients; `tls`: a directory of `farshore certs`; `aux`: more lines of the auxiliary's part."""
        self.name, self.binary = mode, binary
        dr = f"127.0.0.1:{free_port()}"
        self.relay = relay = f"127.0.0.1:{free_port()}" if line else dr
        self.disk = tempfile.mkdtemp(prefix=f"farshore-{mode}-", dir=disk)
        self.memory = tempfile.mkdtemp(prefix=f"farshore-{mode}-", dir=memory)
        self.socket = f"{self.disk}/nbd.sock"
        self.config = f"{self.disk}/config.toml"
        self.volume = f"{self.disk}/volume.img"
        with open(self.config, "w") as out:
            out.write(f"""
[group]
name = "bench"
protect = "{mode}"
[[volume]]
name = "v"
size = "{SIZE}"
[primary]
dir = "{self.disk}/primary"
backing = {{ v = "{self.volume}" }}
listen = {json.dumps([f"unix:{self.socket}", *listen])}
control = "{self.disk}/primary.ctl"
fifo = {{ {fifo} }}
{primary}
[aux]
dir = "{self.memory}/aux"
listen = "127.0.0.1:{free_port()}"
control = "{self.disk}/aux.ctl"
{aux}
[dr]
dir = "{self.memory}/dr"
backing = {{ v = "{self.memory}/volume.img" }}
listen = "{dr}"
address = "{relay}"
export = ["unix:{self.disk}/dr.sock"]
control = "{self.disk}/dr.ctl"
spool = "512MiB"
""")
            if tls:
                keys = {"ca": "ca-cert.pem", "cert": "cert.pem", "key": "key.pem"}
                out.write("[tls]\n" + "".join(f'{key} = "{tls}/{{role}}/{name}"\n' for key, name in keys.items()))
        if filled:
            fill(self.volume)
        self.log = open(f"{self.disk}/log", "w")
        self.roles, self.line = {}, None
        if line:
            delay, rate = line
            command = [binary, "relay", "--listen", relay, "--to", dr, "--delay-ms", str(delay), "--rate-mbit", str(rate),
                       "--control", f"{self.disk}/line.ctl"]
            self.line = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for role in ["aux", "dr", "primary"]:
            command = on("first" if role == "primary" else "last", [binary, role, "--config", self.config])
            self.roles[role] = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.uri = f"nbd+unix:///v?socket={self.socket}"

    def tell_line(self, command):
        """`cut`, `heal` and what else `farshore relay` takes."""
        with socket.socket(socket.AF_UNIX) as conn:
            conn.connect(f"{self.disk}/line.ctl")
            conn.sendall(f"{command}\n".encode())
            answer = conn.recv(4096)
        return answer.decode() if answer.startswith((b"ok", b"{")) else sys.exit(f"the line does not {command}: {answer}")

    def status(self, role="primary"):
        command = [self.binary, "status", "--role", role, "--config", self.config, "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return {}
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if not found:
            found = json.loads(done.stdout)
        found = found if isinstance(found, list) else [found]
        return next((one for one in found if one.get("role") == role), {})

    def settled(self):
        status = self.status()
        return bool(status) and status["lag_writes"] == 0 and status["lag_bytes"] == 0 and not status["degraded"]

    def settle(self):
        wait_for(f"{self.name}: lag zero", self.settled, 120)

    def cpu_seconds(self):
        ticks = 0
        for process in self.roles.values():
            with open(f"/proc/{process.pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def order_bytes(self):
        status = self.status()
        links = {link["peer"]: link.get("order_bytes", 0) for link in status.get("links", [])}
        return status.get("acknowledged_writes", 0), links

    def stop(self):
        if self.line:
            self.line.kill()
        for process in self.roles.values():
            process.send_signal(signal.SIGTERM)
        for process in self.roles.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self.disk, ignore_errors=True)
        shutil.rmtree(self.memory, ignore_errors=True)


def fill(path):
    """Real blocks under the whole file, so that no write allocates."""
    block = os.urandom(1 << 20)
    with open(path, "wb") as out:
        for _ in range(SIZE >> 20):
            out.write(block)
        os.fsync(out.fileno())


def nbd(target):
    return ["--ioengine=nbd", f"--uri={target.uri}"]


def fio(engine, kind, depth, seconds, block="4k"):
    """Operations a second."""
    command = ["fio", "--name=x", *engine, f"--rw={kind}", f"--bs={block}", f"--iodepth={depth}",
               f"--runtime={seconds}", "--time_based", f"--size={SIZE}", "--randrepeat=0", "--output-format=json"]
    done = subprocess.run(on("first", command), capture_output=True, text=True, cwd=tempfile.gettempdir())
    if done.returncode != 0:
        sys.exit(f"fio failed: {done.stderr.strip() or done.stdout.strip()}")
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    return job["write" if "write" in kind else "read"]["iops"]


def connect(target):
    """A connection that has chosen the export, past the handshake."""
    conn = socket.socket(socket.AF_UNIX)
    conn.connect(target.socket)
    receive(conn, 18)
    conn.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 1) + b"v")
    receive(conn, 10)
    return conn


def receive(conn, length):
    data = b""
    while len(data) < length:
        part = conn.recv(length - len(data))
        if not part:
            sys.exit("the server closed a connection in its handshake")
        data += part
    return data


def request(command, cookie, offset, length):
    """The head of a request: 0 reads, 1 writes."""
    return struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length)
