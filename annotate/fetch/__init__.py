"""Bringing the files of a source here: over HTTP, from the hub, and through yt-dlp; nothing is fetched twice."""
