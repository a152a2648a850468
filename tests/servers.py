"""Servers for tests to talk to."""

import contextlib
import socket
import threading


@contextlib.contextmanager
def answering(said: bytes | None):
    """host:port of a server that says something to everyone who comes, or nothing; None: it hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    held.append(connection)  # kept open
                    if said is None:
                        connection.close()
                    elif said:
                        connection.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()
