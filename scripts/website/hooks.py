"""What the site's builder calls: it adds the generated pages, mends links, sets formulas and says where code breaks.

mkdocs build --strict
"""

# The site's packages are in the extra "docs", which a type checker need not have.
# pyright: reportMissingImports=false

import html
import re
from typing import Any

import latex2mathml.converter
import pages
import wrapping
from mkdocs.structure.files import File


def on_config(config: Any) -> Any:
    """Puts the notebooks that there are, and the generated pages of the reference, into the navigation."""
    sections = {title: content for section in config.nav for title, content in section.items()}
    for path in pages.notebooks():
        sections["Tutorials"].append(f"tutorials/{path.stem}.md")
    reference = {title: content for section in sections["Reference"] for title, content in section.items()}
    reference["Config keys"] += [{group: f"reference/config/{group}.md"} for group in pages.groups()]
    reference["Python"] += [{f"ddim_jax.{name}": f"reference/api/{name}.md"} for name in pages.PACKAGES]
    reference["Python"] += [{"Other modules": "reference/api/modules.md"}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages, and a page for each source file that any page links to."""
    # The page of a notebook takes its place.
    for path in pages.notebooks():
        files.remove(files.get_file_from_path(f"tutorials/{path.name}"))
    made: dict[str, str | bytes] = dict(pages.generated())
    for path in pages.notebooks():
        text, pictures = pages.notebook_page(path)
        made[f"tutorials/{path.stem}.md"] = text
        made |= {f"tutorials/{name}": content for name, content in pictures.items()}
    texts = {file.src_uri: file.content_string for file in files.documentation_pages()}
    texts |= {path: text for path, text in made.items() if isinstance(text, str)}
    linked = {source for page, text in texts.items() for source in pages.sources_linked(text, page)}
    made |= {f"source/{source}.md": pages.source_page(source) for source in sorted(linked)}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Makes links of the repository links of the site, and names of config keys links to what they mean."""
    path = page.file.src_uri
    if path.startswith(("source/", "reference/")):
        return markdown
    return pages.keys_linked(pages.relinked(markdown, path), path)


def on_page_content(content: str, **_: Any) -> str:
    """Sets formulas as MathML, which browsers draw without any program, and keeps flags and names in one piece."""

    def formula(match: re.Match[str]) -> str:
        text = html.unescape(match["text"])
        display = "block" if match["tag"] == "div" else "inline"
        return latex2mathml.converter.convert(text, display=display)

    pattern = r'<(?P<tag>div|span) class="arithmatex">\\[(\[](?P<text>.*?)\\[)\]]</(?P=tag)>'
    return wrapping.breakable(re.sub(pattern, formula, content, flags=re.DOTALL))
