"""The style sheet of a picture. It names the picture's class, because a page can have several pictures."""

_FONT = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace'

_SHAPES = f"""
.erd{{font:11px {_FONT};color-scheme:light dark}}
.erd .name{{font-size:12px;font-weight:600}}
.erd .note,.erd .label{{font-size:10px}}
.erd .note{{text-anchor:end}}
.erd .mark{{font-size:8px;font-weight:600}}
.erd .label{{text-anchor:middle;paint-order:stroke;stroke-width:4px}}
.erd .found{{font-weight:600}}
.erd .view .edge{{stroke-dasharray:5 3}}
.erd .line{{fill:none;stroke-width:1.3}}
.erd .path{{stroke-width:2}}
.erd .dots{{stroke-dasharray:2 4}}
.erd .w2{{stroke-width:2}}
.erd .w3{{stroke-width:3}}
.erd .line:hover{{stroke-width:3}}
"""

# Colors of text, soft text, the page, edges, lines, a box, its header; those of the box of a relevant table, those of a
# table that is left out, and values.
_COLORS = """
.erd text{{fill:{text}}}
.erd .soft,.erd .note,.erd .mark,.erd .left text{{fill:{soft}}}
.erd .page{{fill:{page}}}
.erd .edge{{fill:{box};stroke:{line}}}
.erd .head{{fill:{head}}}
.erd .line{{stroke:{line}}}
.erd .dim{{stroke:{head}}}
.erd .label{{fill:{soft};stroke:{page}}}
.erd .main .edge,.erd .path{{stroke:{main}}}
.erd .main .head{{fill:{mainhead}}}
.erd .main .note{{fill:{text}}}
.erd .left .edge{{fill:{page};stroke:{head}}}
.erd .left .head{{fill:{lefthead}}}
.erd .found{{fill:{found}}}
"""
_LIGHT = _COLORS.format(
    text="#0f172a", soft="#64748b", page="#f8fafc", box="#fff", line="#94a3b8", head="#e2e8f0", main="#2563eb",
    mainhead="#dbeafe", lefthead="#f1f5f9", found="#b45309",
)  # fmt: skip
_DARK = _COLORS.format(
    text="#e2e8f0", soft="#94a3b8", page="#0f172a", box="#1e293b", line="#64748b", head="#334155", main="#60a5fa",
    mainhead="#1e40af", lefthead="#172033", found="#fbbf24",
)  # fmt: skip

STYLE = f"{_SHAPES}{_LIGHT}@media (prefers-color-scheme:dark){{{_DARK}}}\n"
