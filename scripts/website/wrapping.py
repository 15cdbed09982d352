"""Where code that stands in a line of text, or a heading, may be broken: narrow screens break it at odd places.

Browsers end a line after each hyphen, so that ``--mode=sample`` is torn into ``--`` and ``mode=sample``.
"""

import html
import re

# Longer words are cut where a reader would: a phone has room for some forty characters of code.
LONGEST_WHOLE = 30

# The name of a module in its heading.
_MODULE = re.compile(r'(?<=doc-module-name">)[\w.]+(?=</span>)')
_CODE = re.compile(r"<pre.*?</pre>|<code(?P<attributes>[^>]*)>(?P<text>[^<]+)</code>", re.DOTALL)
# After a dot, an equals sign and the like between two words, but not inside a number.
_CUT = re.compile(r"""(?<=[\w)"'][./=,:(-])(?<!\d\.)(?<!\de-)(?=[\w"'({\[])""")


def breakable(content: str) -> str:
    """A page whose inline code breaks between words, or between the parts of a long word or name, and nowhere else.

    Args:
        content: HTML.

    >>> breakable("<code>a --b=c</code>")
    '<code>a <span class="whole">--b=c</span></code>'
    """

    def replace(match: re.Match[str]) -> str:
        if match["text"] is None:
            return match[0]
        words = re.split(r"(\s+)", html.unescape(match["text"]))
        return f"<code{match['attributes']}>{''.join(_parts(word) for word in words)}</code>"

    return _CODE.sub(replace, _MODULE.sub(lambda match: re.sub(r"([._])", r"\1<wbr>", match[0]), content))


def _parts(word: str) -> str:
    parts = [word] if len(word) <= LONGEST_WHOLE else _CUT.split(word)
    return "<wbr>".join(_part(part) for part in parts)


def _part(part: str) -> str:
    escaped = html.escape(part, quote=False)
    # Letters alone are not broken anyway.
    return escaped if re.fullmatch(r"\w+|\s*", part) else f'<span class="whole">{escaped}</span>'
