"""Every error a user of this package can meet.

::

    LmtpReplicateError
    ├── ProtocolError          a message breaks LMTP; carries the field and, when known, the stream
    ├── StreamError            one stream failed; its neighbours are unaffected
    ├── EngineError            the engine cannot run (any more)
    │   └── ModelLoadError     the model cannot be loaded as asked
    ├── EndpointError          the endpoint is spelled wrongly, unknown or not permitted
    │   └── AuthenticationError  the token is missing or refused
    ├── TransportError         the peer cannot be reached, or the connection broke
    ├── PredictionError        Replicate ended the prediction with an error
    └── ConfigError            a configuration (config.toml, work directory, option) is wrong

Foreign exceptions become one of these once, where they enter the package. Messages say what was
wrong, where, and what to do, and never contain a token.
"""

from __future__ import annotations


class LmtpReplicateError(Exception):
    """Base of all errors of this package."""


class ProtocolError(LmtpReplicateError):
    """A message breaks LMTP.

    `field` names the offending part (``"logit_bias"``, ``"prompt[3]"``), `stream_id` the stream it
    belongs to, when that much could be read.
    """

    def __init__(
        self, message: str, *, field: str | None = None, stream_id: int | None = None
    ) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.stream_id = stream_id


class StreamError(LmtpReplicateError):
    """One stream failed; the text is the server's reason."""


class EngineError(LmtpReplicateError):
    """The engine cannot run (any more)."""


class ModelLoadError(EngineError):
    """The model cannot be loaded as asked."""


class EndpointError(LmtpReplicateError):
    """The endpoint is spelled wrongly, unknown or not permitted."""


class AuthenticationError(EndpointError):
    """The API token is missing or refused."""


class TransportError(LmtpReplicateError):
    """The peer cannot be reached, or the connection to it broke."""


class PredictionError(LmtpReplicateError):
    """Replicate ended the prediction with an error; the text is Replicate's reason."""


class ConfigError(LmtpReplicateError):
    """A configuration file, work directory or option is wrong; the text names the place."""
