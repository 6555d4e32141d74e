"""What several kinds of tests share: frames, worlds, a test bed, a reference model."""
