"""Pure SIP: messages, URIs, digest, transactions and dialogs (RFC 3261 and its updates). No I/O, no clock."""
