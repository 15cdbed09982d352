"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake that the user can mend: in the config, the data or the workdir.

    The message is one line that says what is wrong, where, and what to do.
    ``main`` prints it without a stack trace and exits with status 2.
    """
