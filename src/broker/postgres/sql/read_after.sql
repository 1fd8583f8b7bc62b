-- The head stands in every row; a log without such events gives one row with nothing but the head.
select c.epoch, c.head, e."offset", e.id, e.name, e.data, e.time
from crossfade.channel c
left join lateral (
    select * from crossfade.event e where e.channel = c.id and $2 < e."offset"
    order by e."offset" limit $3
) e on true
where c.name = $1
order by e."offset"
