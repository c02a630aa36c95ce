"""Parts of scripts/check_gpu."""
