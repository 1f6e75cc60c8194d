"""Record what a daemon's engine is told, and replay it elsewhere (docs/design/recording.md)."""
