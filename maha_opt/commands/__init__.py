"""What the commands of ``maha-opt`` do, a module for each; `maha_opt.cli` says what they take.

The command line is the only part of this package that may import `models`.
"""

from maha_opt.shadowing import require_ours

require_ours("models")
