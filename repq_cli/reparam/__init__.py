"""Re-parameterisable blocks: linear branches that merge into one convolution."""
