"""The exceptions that end a run with one line instead of a stack trace."""


class UserError(Exception):
    """A mistake that the user can mend: in the config, the data or the workdir.

    The message is one line that says what is wrong, where, and what to do.
    ``main`` prints it without a stack trace and exits with :attr:`status`.
    """

    status = 2


class ConfigError(UserError):
    """A config that cannot be used; the message names the key and what to do."""


class PeerLostError(UserError):
    """Another process of the run ended: nobody's mistake here, and starting all of them again goes on with the run."""

    status = 1
