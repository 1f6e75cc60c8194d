"""The daemons' API: HTTP and JSON on a unix socket, server and client."""
