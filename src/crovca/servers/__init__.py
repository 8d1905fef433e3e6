"""Codes on database servers, for collections and query rates that outgrow one machine."""
